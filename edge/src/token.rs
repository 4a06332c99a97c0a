//! The token of an instance: proof that this deployment started it, derived and never stored.
//!
//! Owner: the daemon holds the one secret; the process driver puts a token into each run folder,
//! the control socket checks it. Invariants: a token is good for one session and generation only,
//! and is compared in constant time. Absent: expiry; the generation is the fence.

use std::fmt;

use dormouse_bridge::frames::Secret;
use dormouse_core::id::InstanceId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// What all tokens of a deployment are derived from. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct DeploymentSecret([u8; 32]);

impl DeploymentSecret {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// HMAC-SHA-256 over `agent/key#generation`, in hexadecimal.
    pub fn token_of(&self, instance: &InstanceId) -> Secret {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(instance.to_string().as_bytes());
        Secret(hexadecimal(&mac.finalize().into_bytes()))
    }

    pub fn token_is_valid(&self, instance: &InstanceId, token: &Secret) -> bool {
        self.token_of(instance).0.as_bytes().ct_eq(token.0.as_bytes()).into()
    }
}

impl fmt::Debug for DeploymentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeploymentSecret(…)")
    }
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::Generation;

    use super::*;

    fn instance(session: &str, generation: u64) -> InstanceId {
        InstanceId { session: session.parse().unwrap(), generation: Generation(generation) }
    }

    #[test]
    fn a_token_is_good_for_its_own_instance_and_deployment_only() {
        let secret = DeploymentSecret::new([7; 32]);
        let token = secret.token_of(&instance("python/main", 3));
        assert!(secret.token_is_valid(&instance("python/main", 3), &token));
        assert!(!secret.token_is_valid(&instance("python/main", 4), &token));
        assert!(!secret.token_is_valid(&instance("python/other", 3), &token));
        assert!(
            !DeploymentSecret::new([8; 32]).token_is_valid(&instance("python/main", 3), &token)
        );
    }

    #[test]
    fn a_cut_or_lengthened_token_is_refused() {
        let secret = DeploymentSecret::new([7; 32]);
        let main = instance("python/main", 3);
        let token = secret.token_of(&main).0;
        for bad in
            [String::new(), token[..63].to_owned(), format!("{token}0"), token.to_uppercase()]
        {
            assert!(!secret.token_is_valid(&main, &Secret(bad)));
        }
    }

    #[test]
    fn the_token_is_the_published_construction() {
        // openssl: printf 'a/k#1' | openssl dgst -sha256 -mac HMAC -macopt hexkey:00…00
        let token = DeploymentSecret::new([0; 32]).token_of(&instance("a/k", 1)).0;
        assert_eq!(token, EXPECTED);
    }

    const EXPECTED: &str = "79b791daed1a44482a042534a0af035202a01d3241f6fc64e17957b7ca3764c4";

    #[test]
    fn the_secret_is_not_printed() {
        assert_eq!(format!("{:?}", DeploymentSecret::new([7; 32])), "DeploymentSecret(…)");
    }
}
