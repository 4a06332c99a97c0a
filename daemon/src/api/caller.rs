//! Who asks: from the `Authorization` header to a subject and its scopes.
//!
//! Owner: handlers name `Known` or `Operator` in their arguments; without one of them a route is
//! open.
//! Invariants: a wrong key is counted per address, and an address with too many is not listened to
//! for a while, on loopback too; nothing in a request but its key says who it is from.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;

use crate::api::Api;
use crate::api::problem::Problem;
use crate::keys::Caller;

/// Anybody with a valid key.
pub(crate) struct Known(pub(crate) Caller);

/// A key with the operator scope.
pub(crate) struct Operator(pub(crate) Caller);

impl FromRequestParts<Api> for Known {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        identify(parts, api).map(Known)
    }
}

impl FromRequestParts<Api> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let caller = identify(parts, api)?;
        if caller.is_operator { Ok(Operator(caller)) } else { Err(Problem::operator_needed()) }
    }
}

fn identify(parts: &Parts, api: &Api) -> Result<Caller, Problem> {
    let address = address_of(parts);
    if let Some(after) = api.gate.is_locked_out(address) {
        api.metrics.refused_at_gate("too_many_wrong_keys");
        return Err(Problem::too_fast(after));
    }
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
        api.gate.stranger(address).map_err(Problem::too_fast)?;
        return Err(Problem::unauthenticated());
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token.and_then(|token| api.keys.caller(token)) {
        Some(caller) => Ok(caller),
        None => {
            api.gate.wrong_key(address);
            Err(Problem::wrong_key())
        }
    }
}

/// The peer's address; never a header's word for it.
fn address_of(parts: &Parts) -> IpAddr {
    let connected = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    connected.expect("the server notes each connection's address").0.ip()
}
