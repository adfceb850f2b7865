use std::rc::Rc;

use actix_http::{Request, header};

use super::*;

fn settings() -> Settings {
    Settings {
        trusted_proxies: Vec::new(),
        connections_per_address: None,
        handshakes_per_second: None,
        handshake_queue: 0,
        inbound: None,
    }
}

fn from(peer: &str) -> Request {
    let mut request = Request::new();
    request.head_mut().peer_addr = Some(peer.parse().unwrap());
    request
}

#[tokio::test]
async fn an_address_has_room_again_when_a_connection_ends() {
    let gate = Gate::new(Settings { connections_per_address: NonZeroU32::new(2), ..settings() });
    let enter = async |peer: &str| gate.enter(from(peer).head()).await;
    let first = enter("203.0.113.9:1").await.unwrap();
    let _second = enter("203.0.113.9:2").await.unwrap();
    assert_eq!(enter("203.0.113.9:3").await.err(), Some(Closed::Crowded));
    assert_eq!(enter("[::ffff:203.0.113.9]:4").await.err(), Some(Closed::Crowded));
    assert!(enter("203.0.113.10:1").await.is_ok());
    drop(first);
    assert!(enter("203.0.113.9:5").await.is_ok());
    // One network of 64 bits is one address.
    let _a = enter("[2001:db8:0:1::1]:1").await.unwrap();
    let _b = enter("[2001:db8:0:1:ffff::2]:1").await.unwrap();
    assert_eq!(enter("[2001:db8:0:1::3]:1").await.err(), Some(Closed::Crowded));
    assert!(enter("[2001:db8:0:2::1]:1").await.is_ok());
}

#[tokio::test]
async fn an_address_without_connections_takes_no_room() {
    let gate = Gate::new(Settings { connections_per_address: NonZeroU32::new(2), ..settings() });
    for index in 0..100 {
        let mut request = from(&format!("203.0.113.{index}:1"));
        request
            .headers_mut()
            .insert(header::X_FORWARDED_FOR, header::HeaderValue::from_static("1.1.1.1"));
        drop(gate.enter(request.head()).await.unwrap());
    }
    let (addresses, _) = gate.addresses.as_ref().unwrap();
    assert!(addresses.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
}

#[tokio::test(start_paused = true)]
async fn what_comes_faster_waits_in_order_and_the_rest_is_refused() {
    let settings =
        Settings { handshakes_per_second: NonZeroU32::new(10), handshake_queue: 5, ..settings() };
    let gate = Rc::new(Gate::new(settings));
    let begun = Instant::now();
    let local = tokio::task::LocalSet::new();
    let came = local
        .run_until(async {
            let tasks: Vec<_> = (0..10)
                .map(|_| {
                    let gate = Rc::clone(&gate);
                    tokio::task::spawn_local(async move {
                        let entered = gate.enter(from("203.0.113.9:1").head()).await;
                        (entered.map(drop), begun.elapsed())
                    })
                })
                .collect();
            let mut came = Vec::new();
            for task in tasks {
                came.push(task.await.unwrap());
            }
            came
        })
        .await;
    // One at once, five in the queue, a tenth of a second apart, in their order.
    for (place, (entered, at)) in came.iter().take(6).enumerate() {
        assert_eq!(*entered, Ok(()));
        let due = Duration::from_millis(100) * u32::try_from(place).unwrap();
        assert!(*at >= due && *at < due + Duration::from_millis(20), "{place}: {at:?}");
    }
    for (entered, at) in came.iter().skip(6) {
        assert_eq!((*entered, *at), (Err(Closed::Busy), Duration::ZERO));
    }
    assert_eq!(gate.queue.as_ref().unwrap().waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_makes_sense() {
    let settings = Settings {
        handshakes_per_second: NonZeroU32::new(1),
        handshake_queue: 1_000,
        ..settings()
    };
    let gate = Gate::new(settings);
    let begun = Instant::now();
    let all = futures_util::future::join_all(
        (0..100).map(|_| async { gate.enter(from("203.0.113.9:1").head()).await.is_ok() }),
    );
    let entered = all.await.into_iter().filter(|entered| *entered).count();
    assert_eq!(entered, 3);
    assert!(begun.elapsed() <= PATIENCE + Duration::from_millis(10), "{:?}", begun.elapsed());
}
