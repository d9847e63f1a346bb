//! The service: deliveries in, activity results out, every delivery settled.

mod breaker;
mod company;
mod decide;
mod engine;
mod intake;
mod judge;
mod lanes;
mod left;
mod local;
mod memory;
mod moves;
mod order;
mod outbox;
mod pipeline;
mod service;
mod share;
mod trial;
mod weight;

pub use intake::Residents;
pub use judge::{Judged, judge};
pub use local::Residence;
pub use pipeline::{Pipeline, PipelineOptions};
pub use service::{Service, ServiceOptions, Stop};
pub use weight::Budget;
