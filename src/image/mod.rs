//! Images: store, layers, recipes, references, archives.
