"""What people read: plots of a run, and the comparison as tables, plots and Markdown."""
