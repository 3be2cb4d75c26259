//! The default backend: sessions in this process.
#[derive(Debug)]
pub struct MemoryBackend;
#[derive(Debug)]
pub struct MemoryConfig;
