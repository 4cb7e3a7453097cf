"""What everything else builds on: errors that the user can fix, and files that are written whole or not at all."""
