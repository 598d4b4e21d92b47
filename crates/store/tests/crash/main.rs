//! What an embedded store holds after a crash: all that was acknowledged, nothing by halves.

mod disk;
mod full;
mod kill;
mod power;
