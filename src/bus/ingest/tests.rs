//! The reader, with a stream in memory.
