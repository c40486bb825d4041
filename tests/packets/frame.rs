//! Frames, built layer by layer. Lengths are filled in; every field can be spoiled afterwards.

/// IP protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP_V6: u8 = 58;

/// Flag and offset field of an IPv4 fragment that is the first of several.
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;

/// The layers before the network header.
#[derive(Clone, Default)]
pub(crate) struct Link(Vec<u8>);

impl Link {
    /// An Ethernet header without tags.
    pub(crate) fn untagged() -> Self {
        Self(vec![2; 12])
    }

    /// Adds a VLAN tag; `ethertype` is 0x8100, 0x88a8 or 0x9100.
    pub(crate) fn tag(mut self, ethertype: u16, id: u16) -> Self {
        self.0.extend(ethertype.to_be_bytes());
        self.0.extend(id.to_be_bytes());
        self
    }

    /// A frame of another protocol.
    pub(crate) fn carry(mut self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        self.0.extend(ethertype.to_be_bytes());
        self.0.extend(payload);
        self.0
    }
}

/// An IPv4 datagram.
#[derive(Clone)]
pub(crate) struct V4 {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) protocol: u8,
    /// Multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// Flags and offset.
    pub(crate) fragment: u16,
    pub(crate) payload: Vec<u8>,
}

impl V4 {
    pub(crate) fn new(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, protocol, options: Vec::new(), fragment: 0, payload }
    }

    pub(crate) fn on(&self, link: Link) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut packet = vec![0x40 | (header_len / 4) as u8, 0];
        packet.extend(((header_len + self.payload.len()) as u16).to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([64, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(&self.options);
        packet.extend(&self.payload);
        link.carry(0x0800, &packet)
    }
}

/// An IPv6 datagram.
#[derive(Clone)]
pub(crate) struct V6 {
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    /// Protocol of the payload, behind the extension headers.
    pub(crate) protocol: u8,
    /// (protocol number, whole header with the first byte still to be set to the next one's number).
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

impl V6 {
    pub(crate) fn new(source: [u8; 16], destination: [u8; 16], protocol: u8, payload: Vec<u8>) -> Self {
        Self { source, destination, protocol, extensions: Vec::new(), hop_limit: 64, payload }
    }

    pub(crate) fn extend(mut self, number: u8, header: Vec<u8>) -> Self {
        self.extensions.push((number, header));
        self
    }

    pub(crate) fn on(&self, link: Link) -> Vec<u8> {
        let mut chain: Vec<u8> = Vec::new();
        for (index, (_, header)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.protocol, |(number, _)| *number);
            let mut header = header.clone();
            header[0] = next;
            chain.extend(header);
        }
        chain.extend(&self.payload);
        let first = self.extensions.first().map_or(self.protocol, |(number, _)| *number);
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((chain.len() as u16).to_be_bytes());
        packet.extend([first, self.hop_limit]);
        packet.extend(self.source);
        packet.extend(self.destination);
        packet.extend(chain);
        link.carry(0x86dd, &packet)
    }
}

/// An options-like extension header of `units` times eight bytes.
pub(crate) fn extension(units: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(units) * 8];
    header[1] = units - 1;
    header
}

/// An authentication header with an integrity value of 12 bytes.
pub(crate) fn authentication() -> Vec<u8> {
    let mut header = vec![0; 24];
    header[1] = 4;
    header
}

/// An IPv6 fragment header; `offset` in units of eight bytes.
pub(crate) fn fragment(offset: u16, has_more: bool) -> Vec<u8> {
    let field = (offset << 3 | u16::from(has_more)).to_be_bytes();
    vec![0, 0, field[0], field[1], 0, 0, 0, 7]
}

pub(crate) fn tcp(destination: u16) -> Vec<u8> {
    let mut header = 40_000u16.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

pub(crate) fn udp(destination: u16) -> Vec<u8> {
    let mut header = 40_000u16.to_be_bytes().to_vec();
    header.extend(destination.to_be_bytes());
    header.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    header
}

pub(crate) fn icmp(kind: u8, code: u8) -> Vec<u8> {
    vec![kind, code, 0, 0, 0, 0, 0, 0]
}
