//! Lists that the daemon gives out page by page, as one list of at most so many items.
//!
//! Invariant: it ends, even with a daemon whose pages never do. Absent: what the items are.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::client::{Call, Client, ClientError, encoded};

const PAGE_ITEMS_MAX: usize = 500;

/// Items, newest first, as they came.
#[derive(Debug, Default)]
pub(crate) struct Items {
    pub(crate) values: Vec<Value>,
    /// There are others, beyond what was asked for.
    pub(crate) has_more: bool,
}

impl Items {
    pub(crate) fn typed<T: DeserializeOwned>(
        &self,
        client: &Client,
    ) -> Result<Vec<T>, ClientError> {
        self.values.iter().map(|value| client.typed(value)).collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"items": self.values, "has_more": self.has_more})
    }
}

/// A list that comes whole.
pub(crate) async fn whole_list(client: &Client, path: &str) -> Result<Items, ClientError> {
    match client.json(Call::get(path)).await? {
        Value::Array(values) => Ok(Items { values, has_more: false }),
        _ => Err(client.not_understood("something other than a list")),
    }
}

/// `filters` are names and values of the query.
pub(crate) async fn items(
    client: &Client,
    path: &str,
    filters: &[(&str, String)],
    limit: usize,
) -> Result<Items, ClientError> {
    let mut items = Items::default();
    let mut before: Option<String> = None;
    loop {
        let wanted = (limit - items.values.len()).min(PAGE_ITEMS_MAX);
        let mut query = format!("limit={wanted}");
        let before_filter = before.as_ref().map(|before| ("before", before.clone()));
        for (name, value) in filters.iter().cloned().chain(before_filter) {
            query.push_str(&format!("&{name}={}", encoded(&value)));
        }
        let mut page = client.json(Call::get(format!("{path}?{query}"))).await?;
        let Some(Value::Array(values)) = page.get_mut("items").map(Value::take) else {
            return Err(client.not_understood("a page without items"));
        };
        let is_empty = values.is_empty();
        items.values.extend(values);
        let next = page.get("next").and_then(Value::as_str).map(str::to_owned);
        items.has_more = next.is_some() || items.values.len() > limit;
        items.values.truncate(limit);
        if is_empty || next.is_none() || next == before || items.values.len() >= limit {
            return Ok(items);
        }
        before = next;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{ScriptedServer, answer};
    use super::*;

    #[tokio::test]
    async fn pages_are_put_together_up_to_the_limit() {
        let server = ScriptedServer::start(vec![
            answer("200 OK", r#"{"items": [1, 2], "next": "a/b"}"#),
            answer("200 OK", r#"{"items": [3, 4], "next": "c"}"#),
        ])
        .await;
        let filters = [("agent", "python".to_owned())];
        let items = items(&server.client(), "/v1/x", &filters, 3).await.unwrap();
        assert_eq!(items.to_json(), json!({"items": [1, 2, 3], "has_more": true}));
        let asked =
            ["GET /v1/x?limit=3&agent=python", "GET /v1/x?limit=1&agent=python&before=a%2Fb"];
        assert_eq!(server.request_lines(), asked);
    }

    #[tokio::test]
    async fn a_daemon_that_repeats_itself_is_not_followed_for_ever() {
        let page = answer("200 OK", r#"{"items": [1], "next": "a"}"#);
        let server = ScriptedServer::start(vec![page.clone(), page]).await;
        let items = items(&server.client(), "/v1/x", &[], 100).await.unwrap();
        assert_eq!(items.values.len(), 2);
    }
}
