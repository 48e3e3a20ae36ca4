mod decorators;
mod flush_cost;
mod smoke;
