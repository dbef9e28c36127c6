"""`train.sweep`: many training runs in one folder, shared by any number of workers."""
