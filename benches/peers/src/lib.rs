//! Measures `microbatch` against its peers. README.md says what and how.

pub mod counting;
pub mod figures;
pub mod load;
pub mod measure;
pub mod picture;
pub mod progress;
pub mod queues;
pub mod subject;
pub mod subjects;
pub mod table;
