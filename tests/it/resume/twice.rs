//! L15: a publisher that repeats a request gets the same answer, with the same id, and nobody gets
//! the event twice. L16, L17: what comes before a disconnect, and how large it may be.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    PATIENCE,
    app::{API_KEY, Builder, Replica},
    client::Dial,
    jwt::{Jwt, now, token},
    redis::RedisServer,
    tab::{Kind, Tab, for_all, for_group, for_user, marker, member, put, quick},
};

on_both!(
    l15_a_repetition_gets_the_same_id,
    l15_many_at_once_are_one,
    l16_an_event_is_seen_before_the_disconnect_that_follows_it,
    l17_size_limits_end_to_end,
);

fn dial(replica: &Replica) -> Dial {
    Dial::to(replica).query(&Jwt::of("alice").groups(&["staff"]).sign())
}

/// What is kept of it comes once: live, and in the replay after this cursor.
async fn is_once(tab: &mut Tab, replica: &Replica, id: &str) {
    let begin = tab.cursor.to_string();
    let frame = tab.next().await;
    assert_eq!(member(&frame, "id"), Some(id), "{frame}");
    put(replica, &for_user("alice", "last")).await;
    assert!(tab.before("last").await.is_empty(), "it came twice");
    let mut later = Tab::resume(&dial(replica), &begin).await;
    later.is_whole();
    let replayed = later.replay().await;
    let ids: Vec<_> = replayed.iter().filter_map(|frame| member(frame, "id")).collect();
    assert_eq!(ids.len(), 2, "it is kept twice: {ids:?}");
    assert!(ids.contains(&id), "{ids:?}");
}

async fn l15_a_repetition_gets_the_same_id(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let mut tab = Tab::open(&dial(replica)).await;
    for (key, event) in [
        ("key-u", for_user("alice", "one")),
        ("key-b", for_all("one")),
        ("key-g", for_group("staff", "one")),
    ] {
        let first = replica.post_once(event.to_string(), key).await;
        assert_eq!(first.status, 202, "{first:?}");
        let said = first.json();
        let id = said["id"].as_str().unwrap_or_else(|| panic!("no id: {said}"));
        for _ in 0..5 {
            let again = replica.post_once(event.to_string(), key).await;
            assert_eq!((again.status, again.text), (202, first.text.clone()), "{key}");
        }
        is_once(&mut tab, replica, id).await;
    }
    // Users of one request, each once.
    let several = json!({"to": {"users": ["alice", "bob"]}, "type": "t", "data": {"mk": "x"}});
    let first = replica.post_once(several.to_string(), "key-s").await;
    let again = replica.post_once(several.to_string(), "key-s").await;
    assert_eq!((first.status, &first.text), (again.status, &again.text));
    let said = first.json();
    let id = said["events"][0]["id"].as_str().unwrap_or_else(|| panic!("no id: {said}"));
    is_once(&mut tab, replica, id).await;
}

async fn l15_many_at_once_are_one(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for run in 0..5 {
        let mut tab = Tab::open(&dial(replica)).await;
        let (event, key) = (for_user("alice", "one").to_string(), format!("key-{run}"));
        let posts = (0..40).map(|_| replica.post_once(event.clone(), &key));
        let mut texts = Vec::new();
        for answer in futures_util::future::join_all(posts).await {
            match answer.status {
                202 => texts.push(answer.text),
                503 => assert!(answer.header("retry-after").is_some(), "{answer:?}"),
                _ => panic!("{answer:?}"),
            }
        }
        texts.dedup();
        assert_eq!(texts.len(), 1, "different answers: {texts:?}");
        let said: Value = serde_json::from_str(&texts[0]).expect("JSON");
        is_once(&mut tab, replica, said["id"].as_str().expect("an id")).await;
    }
}

/// The two halves of a repetition go to two replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l15_over_two_replicas() {
    let redis = RedisServer::start().await;
    let start = || quick(Builder::production(), &redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    let mut tab = Tab::open(&dial(&one)).await;
    for run in 0..10 {
        let (event, key) = (for_user("alice", "one").to_string(), format!("key-{run}"));
        let (a, b) =
            tokio::join!(one.post_once(event.clone(), &key), two.post_once(event.clone(), &key));
        assert_eq!((a.status, b.status, &a.text), (202, 202, &b.text));
        is_once(&mut tab, &two, a.json()["id"].as_str().expect("an id")).await;
    }
}

async fn l16_an_event_is_seen_before_the_disconnect_that_follows_it(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    for run in 0..50 {
        let session = format!("s-{run}");
        let jwt = Jwt::of("alice").claim("sid", session.as_str()).claim("iat", now() - 5).sign();
        let dial = Dial::to(replica).query(&jwt);
        let mut tab = Tab::open(&if run % 2 == 0 { dial } else { dial.sse() }).await;
        let id = put(replica, &for_user("alice", &session)).await;
        let order = replica
            .http
            .post(format!("http://{}/v1/disconnect", replica.internal))
            .header("authorization", format!("Bearer {API_KEY}"))
            .header("content-type", "application/json")
            .body(json!({"session": session}).to_string());
        let order = order.send().await.expect("an answer to POST /v1/disconnect");
        assert_eq!(order.status().as_u16(), 200, "run {run}");
        let frame = tab.next().await;
        assert_eq!(member(&frame, "id"), Some(id.as_str()), "run {run}: {frame}");
        let goodbye = tab.next_word("belfry.goodbye").await;
        assert_eq!((&goodbye["code"], &goodbye["reason"]), (&json!(4403), &json!("revoked")));
        assert!(goodbye["retry_after_ms"].is_null(), "{goodbye}");
        tab.ends().await;
    }
}

async fn l17_size_limits_end_to_end(kind: Kind) {
    let place = kind.start(Builder::production()).await;
    let replica = &place.replica;
    let road = Dial::to(replica).query(&token("alice"));
    let mut tabs = [Tab::open(&road).await, Tab::open(&road.clone().sse()).await];
    let begin = tabs[0].cursor.to_string();
    let limit = 64 * 1024;
    // Characters of two bytes, and one of one where it does not come out even.
    let sized = |bytes: usize| {
        let text = bytes - r#"{"mk":""}"#.len();
        let event = for_user("alice", &format!("{}{}", "é".repeat(text / 2), "x".repeat(text % 2)));
        assert_eq!(event["data"].to_string().len(), bytes);
        event
    };
    let sha = |text: &str| Sha256::digest(text);
    for bytes in [limit - 1, limit] {
        let event = sized(bytes);
        put(replica, &event).await;
        for tab in &mut tabs {
            let text = marker(&tab.next().await);
            assert_eq!(sha(&text), sha(&marker(&event)), "{bytes}");
        }
    }
    for bytes in [limit + 1, limit * 2] {
        replica.post(sized(bytes).to_string()).await.is_problem(413);
    }
    put(replica, &for_user("alice", "last")).await;
    for tab in &mut tabs {
        assert!(tab.before("last").await.is_empty(), "a refused event arrived");
    }
    // Nor was it kept; and what was kept is whole.
    for road in [road.clone(), road.sse()] {
        let mut tab = Tab::resume(&road, &begin).await;
        tab.is_whole();
        let replayed: Vec<_> = tab.replayed().await.iter().map(|text| sha(text)).collect();
        let wanted = [sized(limit - 1), sized(limit)].map(|event| sha(&marker(&event)));
        assert_eq!(replayed, [&wanted[..], &[sha("last")]].concat());
    }
    drop(tabs);
    replica.metric_is("connections", 0.0, PATIENCE).await;
}
