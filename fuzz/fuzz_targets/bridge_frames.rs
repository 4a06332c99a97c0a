//! Frames between daemon and bridge: whatever comes is refused or understood, and what is
//! understood says the same after a round trip.

#![no_main]

use dormouse_bridge::frames::{FromBridge, ToBridge};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn round_trip<Frame: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(frame) = serde_json::from_slice::<Frame>(bytes) {
        let again = serde_json::to_vec(&frame).expect("a frame can be said");
        let back = serde_json::from_slice::<Frame>(&again).expect("and is understood");
        assert_eq!(back, frame);
    }
}

fuzz_target!(|bytes: &[u8]| {
    round_trip::<FromBridge>(bytes);
    round_trip::<ToBridge>(bytes);
});
