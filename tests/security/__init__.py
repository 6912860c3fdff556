"""What strangers, members that have turned bad, and other users of a machine try."""
