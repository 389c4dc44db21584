"""What is kept on the disk between runs: what each user has, past runs, clean-ups that wait."""
