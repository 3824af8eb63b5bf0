"""What results look like: tables, figures and one self-contained page."""
