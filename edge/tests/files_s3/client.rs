//! How the tests reach their S3 server: with the real client, and little patience.
//!
//! Owner: the tests beside it. Absent: the server.

use std::time::Duration;

use dormouse_edge::files::objects::{Bucket, ObjectCredentials, ObjectServer, Patience};

use crate::server::{BUCKET, KEY_ID, SECRET, Server};

pub(crate) fn patience() -> Patience {
    Patience {
        tries: 5,
        deadline: Duration::from_secs(10),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(20),
        silence: Duration::from_secs(20),
    }
}

impl Server {
    pub(crate) fn config(&self) -> ObjectServer {
        ObjectServer {
            endpoint: Some(format!("http://{}", self.address)),
            region: "us-east-1".to_owned(),
            credentials: Some(ObjectCredentials {
                access_key_id: KEY_ID.to_owned(),
                secret_access_key: SECRET.to_owned(),
                session_token: None,
            }),
            allow_http: false,
            certificates_pem: None,
            patience: patience(),
        }
    }

    pub(crate) fn bucket(&self) -> Bucket {
        self.config().bucket(BUCKET).unwrap()
    }
}
