//! A store that fails by seed.
