//! The service: deliveries in, activity results out, every delivery settled.

mod judge;
mod lanes;
mod memory;
mod pipeline;
mod service;

pub use judge::{Judged, judge};
pub use lanes::Lanes;
pub use pipeline::{Pipeline, PipelineOptions};
pub use service::{Service, ServiceOptions, Stop};
