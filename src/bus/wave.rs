//! How many posts go to the bus at once.

use super::Post;

/// Posts in a wave.
const POSTS: usize = 256;
/// And their bytes, beside the last one.
const BYTES: usize = 4 * 1024 * 1024;

/// Collects posts up to what one call of [`Publisher::post`](super::Publisher::post) is good for:
/// more would take every place on the way to the bus from others, this replica's own probe among
/// them, and outlast the time that a call has, for which its connection would be given up.
#[derive(Default)]
pub struct Wave {
    posts: Vec<Post>,
    bytes: usize,
}

impl Wave {
    /// Adds one. Yields the wave once it is full, and begins the next.
    pub fn add(&mut self, post: Post) -> Option<Vec<Post>> {
        self.bytes += post.event.head.len() + post.event.members.len();
        self.posts.push(post);
        let full = self.posts.len() >= POSTS || self.bytes >= BYTES;
        full.then(|| self.rest()).flatten()
    }

    /// What is in it, if anything.
    pub fn rest(&mut self) -> Option<Vec<Post>> {
        self.bytes = 0;
        let posts = std::mem::take(&mut self.posts);
        (!posts.is_empty()).then_some(posts)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        bus::{Keep, envelope::Parts},
        event::Channel,
    };

    fn waves(count: usize, bytes: usize) -> Vec<usize> {
        let members = Bytes::from(vec![b'x'; bytes]);
        let post = Post {
            to: Channel::Broadcast,
            event: Parts { head: Bytes::new(), members },
            keep: Keep::Kept,
            once: None,
            online: None,
        };
        let mut wave = Wave::default();
        let mut full: Vec<_> = (0..count).filter_map(|_| wave.add(post.clone())).collect();
        full.extend(wave.rest());
        full.iter().map(Vec::len).collect()
    }

    #[test]
    fn posts_and_bytes_are_bounded_and_none_is_forgotten() {
        assert!(waves(0, 1).is_empty());
        assert_eq!(waves(1, 2 * BYTES), [1]);
        assert_eq!(waves(2 * POSTS, 1), [POSTS, POSTS]);
        assert_eq!(waves(2 * POSTS + 1, 1), [POSTS, POSTS, 1]);
        assert_eq!(waves(130, 64 * 1024), [64, 64, 2]);
    }
}
