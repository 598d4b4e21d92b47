//! Lists of a past state come from the store, and no more of it than a page needs.

use std::sync::Arc;

use serde_json::{Value, json};

use super::common::Fixture;
use super::engines;
use super::late::Late;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|item| item["metadata"]["name"].as_str().expect("a name")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_past_state_is_read_page_by_page() {
    let engine = engines::embedded();
    let late = Late::new(engine.store.clone());
    let asked = late.past.clone();
    let asked = || std::mem::take(&mut *asked.lock());
    let server = Fixture::on(Arc::new(late)).await;
    let all: Vec<String> = (0..20).map(|n| format!("m{n:02}")).collect();
    let mut at = String::new();
    for (n, name) in all.iter().enumerate() {
        let labels = if n % 5 == 0 { json!({"color": "red"}) } else { json!({}) };
        let map = json!({"metadata": {"name": name, "labels": labels}});
        let made = server.post(MAPS, &map).await.expect(201);
        at = made["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    }
    server.delete(&format!("{MAPS}/m05")).await.expect(200);
    server.post(MAPS, &json!({"metadata": {"name": "m20"}})).await.expect(201);
    let exact = format!("resourceVersion={at}&resourceVersionMatch=Exact");
    asked();

    let mut seen: Vec<String> = Vec::new();
    let mut query = exact.clone();
    let token = loop {
        let page = server.get(&format!("{MAPS}?limit=3&{query}")).await.expect(200);
        assert_eq!(page["metadata"]["resourceVersion"], *at, "pages share one state");
        seen.extend(names(&page).into_iter().map(str::to_owned));
        let rest = all.len() - seen.len();
        assert_eq!(
            page["metadata"]["remainingItemCount"].as_u64(),
            (rest > 0).then_some(rest as u64)
        );
        assert_eq!(asked(), [3]);
        match page["metadata"]["continue"].as_str() {
            Some(token) => query = format!("continue={token}"),
            None => break query,
        }
    };
    assert_eq!(seen, all);

    let red = format!("{MAPS}?labelSelector=color%3Dred&limit=2");
    let page = server.get(&format!("{red}&{exact}")).await.expect(200);
    assert_eq!(names(&page), ["m00", "m05"]);
    assert_eq!(page["metadata"]["remainingItemCount"], Value::Null);
    assert_eq!(asked(), [2, 4], "more at a time where few are selected");
    let more = page["metadata"]["continue"].as_str().expect("a token");
    let page = server.get(&format!("{red}&continue={more}")).await.expect(200);
    assert_eq!(names(&page), ["m10", "m15"]);

    let one = server.get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm05&{exact}")).await;
    assert_eq!(names(&one.expect(200)), ["m05"]);
    let whole = server.get(&format!("{MAPS}?{exact}")).await.expect(200);
    assert_eq!(names(&whole), all);

    let newest = engine.store.current_revision().await.expect("a revision");
    engine.store.compact(newest).await.expect("a compaction");
    let gone = server.get(&format!("{MAPS}?limit=3&{token}")).await.expect(410);
    assert!(gone["metadata"]["continue"].is_string(), "it may go on, inconsistently: {gone}");
    server.get(&format!("{MAPS}?limit=3&{exact}")).await.expect(410);
}
