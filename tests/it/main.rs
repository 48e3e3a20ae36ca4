mod decorators;
mod smoke;
