"""The stages that come with the library: one package, or module, each. Stages do not import each other."""
