"""Who waits for what, and which run takes them; and the other end of the apply program."""
