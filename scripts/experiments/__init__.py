"""What the scripts share. Not part of the installed package."""
