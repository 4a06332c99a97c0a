//! API keys: opaque tokens, kept as SHA-256, with a subject and scopes.
//!
//! Owner: `KeyRing` holds the valid ones in memory; the store is the truth. Invariants: a token is
//! shown once, when it is made; identity comes from the token, never from a field of a request
//! (DESIGN 14).
//! Absent: sign-in, expiry.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use dormouse_core::id::Subject;
use dormouse_core::time::Wall;
use dormouse_store::KeyRecord;
use sha2::{Digest, Sha256};

use crate::random;

pub(crate) const SCOPE_OPERATOR: &str = "operator";
const TOKEN_PREFIX: &str = "dm_";

/// Who asks, as their key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) subject: Subject,
    pub(crate) is_operator: bool,
}

impl Caller {
    pub(crate) fn may_see(&self, subject: &Subject) -> bool {
        self.is_operator || self.subject == *subject
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct KeyRing {
    by_hash: Arc<RwLock<HashMap<String, (String, Caller)>>>,
}

impl KeyRing {
    pub(crate) fn holding(keys: Vec<KeyRecord>) -> Self {
        let ring = Self::default();
        for key in &keys {
            ring.add(key);
        }
        ring
    }

    pub(crate) fn add(&self, key: &KeyRecord) {
        if key.revoked_at.is_some() {
            return;
        }
        let caller = Caller {
            subject: key.subject.clone(),
            is_operator: key.scopes.iter().any(|scope| scope == SCOPE_OPERATOR),
        };
        let mut by_hash = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        by_hash.insert(key.hash.clone(), (key.id.clone(), caller));
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut by_hash = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        by_hash.retain(|_, (key_id, _)| key_id != id);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_hash.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Looked up by the token's hash: what can be learnt from the time it takes is of no use.
    pub(crate) fn caller(&self, token: &str) -> Option<Caller> {
        let by_hash = self.by_hash.read().unwrap_or_else(PoisonError::into_inner);
        by_hash.get(&hash(token)).map(|(_, caller)| caller.clone())
    }
}

pub(crate) fn hash(token: &str) -> String {
    random::hex(&Sha256::digest(token.as_bytes()))
}

/// A new key and its token, which is not kept.
pub(crate) fn make(
    name: String,
    subject: Subject,
    scopes: Vec<String>,
    now: Wall,
) -> (KeyRecord, String) {
    let token = format!("{TOKEN_PREFIX}{}", random::hex(&random::bytes::<24>()));
    let id = format!("key_{}", random::hex(&random::bytes::<6>()));
    let hash = hash(&token);
    let key = KeyRecord { id, name, hash, subject, scopes, created_at: now, revoked_at: None };
    (key, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_until_its_key_is_removed() {
        let subject = Subject::new("ann").unwrap();
        let (key, token) = make("laptop".to_owned(), subject.clone(), Vec::new(), Wall(1));
        let ring = KeyRing::holding(vec![key.clone()]);
        assert_eq!(ring.caller(&token), Some(Caller { subject, is_operator: false }));
        assert_eq!(ring.caller("dm_wrong"), None);
        ring.remove(&key.id);
        assert_eq!(ring.caller(&token), None);
    }

    #[test]
    fn revoked_keys_open_nothing_after_a_restart() {
        let subject = Subject::new("ann").unwrap();
        let scopes = vec![SCOPE_OPERATOR.to_owned()];
        let (mut key, token) = make("old".to_owned(), subject, scopes, Wall(1));
        key.revoked_at = Some(Wall(2));
        assert_eq!(KeyRing::holding(vec![key]).caller(&token), None);
    }
}
