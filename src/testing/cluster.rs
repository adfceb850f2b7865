//! A Redis Cluster of three masters.

use std::{net::TcpListener, time::Duration};

use super::{RedisServer, eventually};

/// Three masters on loopback with a third of the slots each. They end with this value.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// A running cluster, all of whose nodes know all of it.
    pub async fn running() -> Self {
        let ranges = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        let (mut nodes, mut buses) = (Vec::new(), Vec::new());
        for (n, (from, to)) in ranges.into_iter().enumerate() {
            let mut node = RedisServer::absent();
            // The port of their own bus is 10,000 higher by default, which may be none.
            let bus = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let bus = bus.to_string();
            let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            let more = ["--cluster-node-timeout", "5000", "--loglevel", "warning"];
            node.start_as("127.0.0.1", &[&settings[..], &more[..]].concat()).await;
            let epoch = (n + 1).to_string();
            assert_eq!(node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await, "+OK\r\n");
            assert_eq!(node.command(&["CLUSTER", "ADDSLOTSRANGE", from, to]).await, "+OK\r\n");
            nodes.push(node);
            buses.push(bus);
        }
        let [first, others @ ..] = &nodes[..] else { unreachable!("there are three") };
        for (node, bus) in others.iter().zip(&buses[1..]) {
            let port = node.port.to_string();
            first.command(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]).await;
        }
        for node in &nodes {
            eventually("the node knows the cluster", Duration::from_secs(20), || async {
                let info = node.command(&["CLUSTER", "INFO"]).await;
                info.contains("cluster_state:ok") && info.contains("cluster_size:3")
            })
            .await;
        }
        Self { nodes }
    }

    /// For `redis.url`.
    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port)
    }
}
