//! Steps: what executes one operation of the graph.

pub mod copy;
