"""C sources of what FlatSat runs on boards; `native_sites` compiles them."""
