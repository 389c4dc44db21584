"""What is kept on the disk between runs: who is complete, what was, what is to be cleaned up."""
