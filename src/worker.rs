//! The service: deliveries in, activity results out, every delivery settled.

mod breaker;
mod judge;
mod lanes;
mod memory;
mod order;
mod pipeline;
mod service;

pub use judge::{Judged, judge};
pub use pipeline::{Pipeline, PipelineOptions};
pub use service::{Service, ServiceOptions, Stop};
