//! The portal: the only folder that knows `reqwest`.

mod client;
mod credentials;

pub use client::Portal;
pub use credentials::{Credentials, Keyring};
