# docker build -t happy-signs . && docker run --rm -v "$PWD/outputs:/home/student/project/outputs" happy-signs
# Another command: docker run --rm happy-signs python signs_functional.py --dry-run
FROM python:3.13-slim
RUN useradd --create-home student
WORKDIR /home/student/project
COPY requirements-lock.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements-lock.txt
COPY --chown=student . .
USER student
CMD ["python", "happy_sequential.py"]
