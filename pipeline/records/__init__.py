"""What training runs leave on disk."""
