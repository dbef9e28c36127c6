"""What `zoo eval` finds out about single images: mistakes, labels in doubt, copies, changes."""
