//! What Redis loses after it was acknowledged: its machine crashes before the append-only file is
//! on disk, or a replica is promoted without it. The replicas of Belfry put it back; where that
//! cannot be done, everyone is told, also those who come back later.

use std::path::PathBuf;

use serde_json::json;
use tokio::time::{Duration, sleep};

use crate::support::{
    PATIENCE,
    app::{Builder, Replica},
    client::Dial,
    jwt::{Jwt, token},
    proxy::Proxy,
    redis::RedisServer,
    tab::{Cursor, Tab, for_all, for_group, for_user, group_tag, marker, put, quick, split},
    until,
};

fn dial(replica: &Replica, user: &str) -> Dial {
    Dial::to(replica).query(&Jwt::of(user).groups(&["staff"]).sign())
}

/// A Redis that writes its file once a second, and that can crash with its machine.
struct Mortal {
    redis: RedisServer,
    aof: PathBuf,
}

impl Mortal {
    async fn start() -> Self {
        let options = ["--appendonly", "yes", "--appendfsync", "everysec"];
        // One file, so that its length is a moment.
        let options = [&options[..], &["--auto-aof-rewrite-percentage", "0"]].concat();
        let redis = RedisServer::with(&options).await;
        let aof = redis.dir().join("appendonlydir").join("appendonly.aof.1.incr.aof");
        Self { redis, aof }
    }

    /// A moment to go back to. Whatever was answered is in the file, if not on the disk.
    fn moment(&self) -> u64 {
        std::fs::metadata(&self.aof).expect("the file of Redis 7").len()
    }

    /// The machine dies, and what was written after this moment had not reached the disk.
    fn crash(&mut self, moment: u64) {
        self.redis.kill();
        let file = std::fs::OpenOptions::new().write(true).open(&self.aof).expect("the file");
        assert!(self.moment() > moment, "nothing is lost, so nothing is tested");
        file.set_len(moment).expect("a shorter file");
        file.sync_all().expect("a disk");
    }
}

/// Publishes one more to each channel until it is accepted.
async fn accepted_again(replica: &Replica, marker: &str) {
    for event in [for_user("alice", marker), for_group("staff", marker), for_all(marker)] {
        let key = format!("{marker} {}", event["to"]);
        until("publishing works again", PATIENCE, async || {
            let answer = replica.post_once(event.to_string(), &key).await;
            assert!(matches!(answer.status, 202 | 503), "{answer:?}");
            (answer.status == 202).then_some(())
        })
        .await;
    }
}

/// Reads until each of the three channels has brought the event marked `last`: what each brought,
/// in its order. No word of a loss comes.
async fn each(tab: &mut Tab, last: &str) -> [Vec<String>; 3] {
    let tags = ["u".to_owned(), group_tag("staff"), "b".to_owned()];
    let mut got = [const { Vec::new() }; 3];
    while got.iter().any(|of| of.last().is_none_or(|mk| mk != last)) {
        let frame = tab.next().await;
        if frame["type"] == "belfry.live" {
            continue;
        }
        let (tag, _) = split(frame["id"].as_str().unwrap_or_else(|| panic!("{frame}")));
        let channel = tags.iter().position(|of| of == tag).expect("a channel of its own");
        got[channel].push(marker(&frame));
    }
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_second_of_redis_is_put_back() {
    let mut mortal = Mortal::start().await;
    let start = || quick(Builder::production(), &mortal.redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    let mut here = Vec::new();
    for replica in [&one, &two] {
        here.push(Tab::open(&dial(replica, "alice")).await);
        here.push(Tab::open(&dial(replica, "alice").sse()).await);
    }
    accepted_again(&one, "first").await;
    for tab in &mut here {
        each(tab, "first").await;
    }
    let away = here[0].cursor.to_string();
    let moment = mortal.moment();
    // Each of the two knows of half of it only, and the halves have to fit together.
    let mut wanted = Vec::new();
    let mut ids = Vec::new();
    let mut middle = String::new();
    for n in 0..20 {
        let replica = if n % 2 == 0 { &one } else { &two };
        let mk = n.to_string();
        for event in [for_user("alice", &mk), for_group("staff", &mk), for_all(&mk)] {
            ids.push(put(replica, &event).await);
        }
        wanted.push(mk);
        if n == 9 {
            middle = ids[ids.len() - 3..].join(",");
        }
    }
    mortal.crash(moment);
    mortal.redis.restart().await;
    accepted_again(&two, "after").await;
    wanted.push("after".into());
    for replica in [&one, &two] {
        until("connections are taken again", PATIENCE, async || {
            dial(replica, "alice").try_connect().await.ok()
        })
        .await;
    }
    for tab in &mut here {
        let got = each(tab, "after").await;
        for of in got {
            assert_eq!(of, wanted, "for a connection that was there all along");
        }
    }
    for replica in [&one, &two] {
        for road in [dial(replica, "alice"), dial(replica, "alice").sse()] {
            for (cursor, from) in [(&away, 0), (&middle, 10)] {
                let mut back = Tab::resume(&road, cursor).await;
                back.is_whole();
                for of in each(&mut back, "after").await {
                    assert_eq!(of, wanted[from..], "since {cursor}");
                }
            }
        }
    }
    // Under their own ids.
    let kept = one.api("GET", "/v1/users/alice/events", None).await;
    assert_eq!(kept.status, 200, "{kept:?}");
    for id in ids.iter().filter(|id| id.starts_with("u~")) {
        assert!(kept.text.contains(&format!(r#""id":"{id}""#)), "{id} is not in {}", kept.text);
    }
}

/// While the replica that knows of it cannot reach Redis, another one publishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_something_newer_stands_the_loss_is_kept() {
    let mut mortal = Mortal::start().await;
    let mut proxy = Proxy::start(mortal.redis.address()).await;
    let builder = quick(Builder::production(), &mortal.redis);
    let cut_off = builder.clone().redis_at(&format!("redis://{}", proxy.address));
    let (one, two) = tokio::join!(cut_off.spawn(), builder.spawn());
    let alice = |replica: &Replica| Dial::to(replica).query(&token("alice"));
    let mut bob = Tab::open(&Dial::to(&two).query(&token("bob"))).await;
    let mut here = [Tab::open(&alice(&one)).await, Tab::open(&alice(&two).sse()).await];
    put(&two, &for_user("alice", "first")).await;
    for tab in &mut here {
        assert_eq!(marker(&tab.next().await), "first");
    }
    let away = here[0].cursor.to_string();
    let moment = mortal.moment();
    let lost = put(&one, &for_user("alice", "lost")).await;
    for tab in &mut here {
        assert_eq!(marker(&tab.next().await), "lost");
    }
    let saw_it = here[0].cursor.to_string();
    proxy.refuse().await;
    proxy.cut();
    mortal.crash(moment);
    mortal.redis.restart().await;
    until("the other one publishes", PATIENCE, async || {
        let answer = two.post_once(for_user("alice", "newer").to_string(), "newer").await;
        (answer.status == 202).then_some(())
    })
    .await;
    assert_eq!(marker(&here[1].next().await), "newer");
    proxy.allow().await;
    one.becomes("/readyz", 200, PATIENCE).await;
    // Those who are there.
    let mut after = String::new();
    for (n, tab) in here.iter_mut().enumerate() {
        if n == 0 {
            assert_eq!(marker(&tab.next().await), "newer");
        }
        let word = tab.next().await;
        assert_eq!(word["type"], "belfry.resync", "{word}");
        assert_eq!(word["lost"], json!(["u"]), "{word}");
        after = word["cursor"].as_str().expect("a cursor").to_owned();
    }
    // Those who come back: without what is lost, or with it.
    for replica in [&one, &two] {
        for since in [&away, &saw_it, &lost] {
            let mut back = Tab::resume(&alice(replica), since).await;
            let (resumed, named) = back.resumed();
            if resumed == Some(false) {
                assert!(named.contains(&"u"), "{}", back.welcome);
                continue;
            }
            // Each at its own moment, so the word may come after the replay.
            loop {
                let frame = back.next().await;
                match frame["type"].as_str() {
                    Some("belfry.live") => {}
                    Some("belfry.resync") => {
                        assert_eq!(frame["lost"], json!(["u"]), "{frame}");
                        break;
                    }
                    _ => assert_eq!(marker(&frame), "newer"),
                }
            }
        }
        // Whoever was told is told no more.
        let cursor = here[0].cursor.clone();
        assert_eq!(Cursor::parse(&after).0["u"], cursor.0["u"]);
        let mut back = Tab::resume(&alice(replica), &cursor.to_string()).await;
        back.is_whole();
        assert_eq!(back.replay().await, Vec::<serde_json::Value>::new());
    }
    put(&one, &for_user("alice", "last")).await;
    for tab in &mut here {
        assert_eq!(marker(&tab.next().await), "last");
    }
    // And nobody else.
    put(&one, &for_user("bob", "last")).await;
    assert_eq!(marker(&bob.next().await), "last");
    assert!(one.log().contains("Redis had lost acknowledged events"));
}

/// It is down for longer than events are remembered while all is well, and as soon as it has been
/// given them back, it crashes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_crashes_again_is_given_everything_again() {
    let mut mortal = Mortal::start().await;
    let start = || quick(Builder::production(), &mortal.redis).spawn();
    let (one, two) = tokio::join!(start(), start());
    let mut here = Tab::open(&dial(&one, "alice")).await;
    accepted_again(&one, "first").await;
    each(&mut here, "first").await;
    let away = here.cursor.to_string();
    let moment = mortal.moment();
    let mut wanted = Vec::new();
    for n in 0..6 {
        let replica = if n % 2 == 0 { &one } else { &two };
        let mk = n.to_string();
        for event in [for_user("alice", &mk), for_group("staff", &mk), for_all(&mk)] {
            put(replica, &event).await;
        }
        wanted.push(mk);
    }
    mortal.crash(moment);
    // As long as the fault is to last.
    sleep(Duration::from_secs(6)).await;
    for mk in ["between", "after"] {
        mortal.redis.restart().await;
        accepted_again(&one, mk).await;
        wanted.push(mk.into());
        until("connections are taken again", PATIENCE, async || {
            dial(&two, "alice").try_connect().await.ok()
        })
        .await;
        let mut back = Tab::resume(&dial(&two, "alice"), &away).await;
        back.is_whole();
        for of in each(&mut back, mk).await {
            assert_eq!(of, wanted);
        }
        for of in each(&mut here, mk).await {
            assert!(wanted.ends_with(&of), "{of:?}");
        }
        mortal.crash(moment);
    }
}
