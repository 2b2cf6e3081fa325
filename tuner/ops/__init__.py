"""Code that is only there for speed or memory, each piece beside its plain counterpart."""
