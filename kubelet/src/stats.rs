//! Numbers about the node, its pods and containers.
