//! Bytes against what they were announced to be.
//!
//! Owner: whoever reads or writes a file of a workspace. Invariants: a SHA-256 is always checked; a
//! version tag of 32 hexadecimal digits is the MD5 of the object's bytes, which is what object
//! stores give to whatever was stored in one piece without a key of the customer's; of any other
//! tag nothing but the size can be checked. Absent: files.

use dormouse_core::manifest::{ContentId, Sha256Hash};
use md5::Md5;
use sha2::{Digest as _, Sha256};

pub(crate) enum Digester {
    Sha256(Box<Sha256>),
    Md5(Box<Md5>),
    Nothing,
}

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Digester::Sha256(_) => "Sha256",
            Digester::Md5(_) => "Md5",
            Digester::Nothing => "Nothing",
        })
    }
}

impl Digester {
    /// One that can prove `content`, as far as anything can.
    pub(crate) fn of(content: &ContentId) -> Self {
        match content {
            ContentId::Sha256(_) => Self::sha256(),
            ContentId::Etag(etag) if is_md5(etag) => Self::Md5(Box::default()),
            ContentId::Etag(_) => Self::Nothing,
        }
    }

    pub(crate) fn sha256() -> Self {
        Self::Sha256(Box::default())
    }

    /// Whether a file's bytes say by themselves what they are.
    pub(crate) fn proves(&self) -> bool {
        !matches!(self, Digester::Nothing)
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Digester::Sha256(digest) => digest.update(bytes),
            Digester::Md5(digest) => digest.update(bytes),
            Digester::Nothing => {}
        }
    }

    /// `None`: these bytes have no name of their own.
    pub(crate) fn finish(self) -> Option<ContentId> {
        match self {
            Digester::Sha256(digest) => {
                Some(ContentId::Sha256(Sha256Hash(digest.finalize().into())))
            }
            Digester::Md5(digest) => {
                let bytes: [u8; 16] = digest.finalize().into();
                let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Some(ContentId::Etag(text.into()))
            }
            Digester::Nothing => None,
        }
    }

    /// Whether the bytes are the announced ones, as far as can be known.
    pub(crate) fn confirms(self, content: &ContentId) -> bool {
        self.finish().is_none_or(|found| match (&found, content) {
            (ContentId::Etag(found), ContentId::Etag(etag)) => found.eq_ignore_ascii_case(etag),
            (found, content) => *found == *content,
        })
    }
}

fn is_md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirms(content: &ContentId, bytes: &[u8]) -> bool {
        let mut digester = Digester::of(content);
        digester.update(bytes);
        digester.confirms(content)
    }

    #[test]
    fn bytes_are_confirmed_by_what_their_name_says_of_them() {
        let sha256 = ContentId::Sha256(Sha256Hash::of(b"abc"));
        // RFC 1321, A.5.
        let md5 = ContentId::etag("\"900150983CD24FB0D6963F7D28E17F72\"").unwrap();
        for content in [&sha256, &md5] {
            assert!(confirms(content, b"abc"));
            assert!(!confirms(content, b"abd"));
        }
    }

    #[test]
    fn the_tag_of_an_object_of_several_parts_proves_nothing() {
        let parts = ContentId::etag("900150983cd24fb0d6963f7d28e17f72-2").unwrap();
        assert!(!Digester::of(&parts).proves());
        assert!(confirms(&parts, b"anything"));
    }
}
