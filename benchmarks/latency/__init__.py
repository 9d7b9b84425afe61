"""How fast, how large, how hungry: `tvau bench`, measured in fresh processes, compared, and set beside the limits."""
