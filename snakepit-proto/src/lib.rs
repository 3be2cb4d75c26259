//! The wire protocol of Snakepit: generated gRPC code, the codec of values inside `google.protobuf.Any`, the frames of
//! multiplexed calls, and all constants that both ends of a connection share.
//!
//! This crate depends on no other crate of the workspace, and the domain crates do not depend on it. `snakepit-wire`
//! converts between the two.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod address;
pub mod answers;
pub mod flow;
pub mod headers;
#[cfg(feature = "client")]
pub mod identify;
pub mod launch;
pub mod mux;
pub mod proxy;
pub mod status;
pub mod value;

/// The trait of all messages, for example for their encoded size.
pub use prost::Message;

mod generated {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction, unreachable_pub)]

    pub mod google {
        pub mod protobuf {
            include!("generated/google.protobuf.rs");
        }
    }
    pub mod snakepit {
        pub mod bridge {
            include!("generated/snakepit.bridge.rs");
        }
    }
}

/// The messages and services of package `snakepit.bridge`, as generated from `snakepit_bridge.proto`.
pub mod pb {
    pub use crate::generated::{google::protobuf::Any, snakepit::bridge::*};
}

/// The compiled descriptors of the protocol and its imports, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/descriptor.bin");

/// The largest message either side accepts, in bytes: 100 MiB, as in the original protocol.
///
/// Clients and servers must both set it, because tonic's default for received messages is 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;

/// Runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use prost::Message;

    #[test]
    fn the_descriptor_set_decodes_and_names_the_service() {
        let set = prost_types::FileDescriptorSet::decode(super::FILE_DESCRIPTOR_SET).unwrap();
        let services: Vec<_> =
            set.file.iter().flat_map(|f| &f.service).map(|s| (s.name(), s.method.len())).collect();
        assert_eq!(services, [("BridgeService", 39)]);
    }
}
