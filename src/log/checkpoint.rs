//! TEMP
use super::format::NodeIdentity;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHeader { pub identity: NodeIdentity, pub incarnation: u64, pub segment_bytes: u64, pub scan_lsn: u64, pub prev_crc: u32, pub sections: u32 }
#[derive(Debug, thiserror::Error)]
#[error("bad checkpoint")]
pub struct CheckpointError;
#[derive(Debug)] pub struct CheckpointWriter { out: Vec<u8> }
impl CheckpointWriter {
    pub fn new(h: &CheckpointHeader) -> Self {
        let mut out = Vec::new();
        out.extend_from_slice(&h.identity.cluster_id); out.extend_from_slice(&h.identity.node_id.to_le_bytes()); out.extend_from_slice(&h.identity.log.to_le_bytes());
        out.extend_from_slice(&h.incarnation.to_le_bytes()); out.extend_from_slice(&h.segment_bytes.to_le_bytes()); out.extend_from_slice(&h.scan_lsn.to_le_bytes());
        out.extend_from_slice(&h.prev_crc.to_le_bytes()); out.extend_from_slice(&h.sections.to_le_bytes());
        Self { out }
    }
    pub fn section(&mut self, shard: u16, applied: u64, bytes: &[u8]) {
        self.out.extend_from_slice(&shard.to_le_bytes()); self.out.extend_from_slice(&applied.to_le_bytes()); self.out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.out.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes()); self.out.extend_from_slice(bytes);
    }
    pub fn finish(&mut self) { self.out.extend_from_slice(b"END!"); }
    pub fn take(&mut self) -> Vec<u8> { std::mem::take(&mut self.out) }
}
#[derive(Debug)] pub struct Section { pub shard: u16, pub applied: u64, pub bytes: Vec<u8> }
#[derive(Debug)] pub struct CheckpointReader<'a> { rest: &'a [u8], left: u32 }
impl<'a> CheckpointReader<'a> {
    fn t(&mut self, n: usize) -> Result<&'a [u8], CheckpointError> { let (a, b) = self.rest.split_at_checked(n).ok_or(CheckpointError)?; self.rest = b; Ok(a) }
    fn u(&mut self) -> Result<u64, CheckpointError> { Ok(u64::from_le_bytes(self.t(8)?.try_into().unwrap())) }
    fn w(&mut self) -> Result<u32, CheckpointError> { Ok(u32::from_le_bytes(self.t(4)?.try_into().unwrap())) }
    pub fn open(bytes: &'a [u8]) -> Result<(CheckpointHeader, Self), CheckpointError> {
        let mut r = Self { rest: bytes, left: 0 };
        let cluster_id = r.t(16)?.try_into().unwrap(); let node_id = r.u()?; let log = r.w()?;
        let h = CheckpointHeader { identity: NodeIdentity { cluster_id, node_id, log }, incarnation: r.u()?, segment_bytes: r.u()?, scan_lsn: r.u()?, prev_crc: r.w()?, sections: r.w()? };
        r.left = h.sections; Ok((h, r))
    }
    pub fn next_section(&mut self) -> Result<Option<Section>, CheckpointError> {
        if self.left == 0 { return if self.rest == b"END!" { Ok(None) } else { Err(CheckpointError) }; }
        self.left -= 1;
        let shard = u16::from_le_bytes(self.t(2)?.try_into().unwrap()); let applied = self.u()?; let len = self.u()? as usize; let crc = self.w()?;
        let bytes = self.t(len)?.to_vec();
        if crc32fast::hash(&bytes) != crc { return Err(CheckpointError); }
        Ok(Some(Section { shard, applied, bytes }))
    }
}
