"""`limpet start`: one process that starts the others, watches over them, and takes orders."""
