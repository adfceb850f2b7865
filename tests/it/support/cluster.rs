//! A Redis Cluster of three masters.

use super::{PATIENCE, free_port, redis::RedisServer, until};

/// Three masters with a third of the slots each.
pub struct Cluster {
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    pub async fn start() -> Self {
        let ranges = ["0 5460", "5461 10922", "10923 16383"];
        let (mut nodes, mut buses) = (Vec::new(), Vec::new());
        for (range, epoch) in ranges.into_iter().zip(1..) {
            let bus = free_port().to_string();
            let options = ["--cluster-enabled", "yes", "--cluster-port", bus.as_str()];
            let node = RedisServer::with(&options).await;
            let mut client = node.client().await;
            client.words(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}")).await;
            client.words(&format!("CLUSTER ADDSLOTSRANGE {range}")).await;
            nodes.push(node);
            buses.push(bus);
        }
        let mut first = nodes[0].client().await;
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            let port = node.address().port();
            first.words(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}")).await;
        }
        for node in &nodes {
            until("the node knows the cluster", PATIENCE, async || {
                let info = node.cli(&["CLUSTER", "INFO"]);
                (info.contains("cluster_state:ok") && info.contains("cluster_size:3")).then_some(())
            })
            .await;
        }
        Self { nodes }
    }

    /// Any of them is enough to find the others.
    pub fn url(&self) -> String {
        format!("redis-cluster://{}", self.nodes[0].address())
    }
}
