"""What a run recorded, and every file that holds it."""
