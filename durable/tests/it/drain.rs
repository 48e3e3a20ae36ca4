//! Draining: the rules, one by one.
