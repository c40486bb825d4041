//! The host's NICs by name, and news of them: one may appear, vanish or be renamed at any time.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream::LocalBoxStream};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage},
    },
    sys::SocketAddr,
};

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// For a VLAN device: index of the NIC it stands on, and the VLAN's id.
    pub vlan: Option<(u32, u16)>,
}

/// Where packets of an interface that a domain names are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// NIC that carries `admit`: a VLAN device's packets are judged, tag and all, on the NIC below it.
    pub ifindex: u32,
    /// VLAN id that the packets carry.
    pub vlan: Option<u16>,
    /// Index of the interface itself, which the stack sees as the ingress interface.
    pub ingress: u32,
}

/// The NICs of this network namespace.
#[derive(Default)]
pub struct Links {
    by_index: BTreeMap<u32, Link>,
}

/// News of NICs.
pub struct LinkNews(LocalBoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>);

impl LinkNews {
    /// Waits for news, to be given to [`Links::take`]. Cancel-safe. Never returns after netlink was lost.
    pub async fn next(&mut self) -> NetlinkMessage<RouteNetlinkMessage> {
        match self.0.next().await {
            Some((message, _)) => message,
            None => std::future::pending().await,
        }
    }
}

impl Links {
    /// Lists the NICs and begins to watch them. Must be called in a `LocalSet`. Also returns the netlink handle, for
    /// [`super::address`].
    ///
    /// # Errors
    /// When netlink is not usable.
    pub async fn watch() -> Result<(Self, LinkNews, Handle), rtnetlink::Error> {
        let (connection, handle, news) =
            new_multicast_connection(&[MulticastGroup::Link]).map_err(|_| rtnetlink::Error::RequestFailed)?;
        tokio::task::spawn_local(connection);
        let mut links = Self::default();
        let mut listed = handle.link().get().execute();
        while let Some(message) = listed.try_next().await? {
            links.put(&message);
        }
        Ok((links, LinkNews(news.boxed_local()), handle))
    }

    /// Takes news; returns whether anything that matters has changed.
    pub fn take(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> bool {
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.put(&link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
                self.by_index.remove(&link.header.index).is_some()
            }
            _ => false,
        }
    }

    /// Where to judge the packets of the interface with this name; `None` when there is none.
    pub fn find(&self, name: &str) -> Option<Attachment> {
        let link = self.by_index.values().find(|link| link.name == name)?;
        Some(match link.vlan {
            Some((parent, id)) => Attachment { ifindex: parent, vlan: Some(id), ingress: link.index },
            None => Attachment { ifindex: link.index, vlan: None, ingress: link.index },
        })
    }

    fn put(&mut self, message: &LinkMessage) -> bool {
        let Some(link) = parse(message) else { return false };
        let is_news = self.by_index.get(&link.index) != Some(&link);
        self.by_index.insert(link.index, link);
        is_news
    }
}

fn parse(message: &LinkMessage) -> Option<Link> {
    let mut name = None;
    let mut parent = None;
    let mut id = None;
    let mut is_vlan = false;
    let mut is_parent_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => is_parent_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(InfoKind::Vlan) => is_vlan = true,
                        LinkInfo::Data(InfoData::Vlan(data)) => {
                            id =
                                data.iter().find_map(|item| if let InfoVlan::Id(id) = item { Some(*id) } else { None });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // A VLAN device whose NIC is in another network namespace is judged on its own: that NIC is out of reach.
    let vlan = if is_vlan && !is_parent_elsewhere { parent.zip(id) } else { None };
    Some(Link { index: message.header.index, name: name?, vlan })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_vlan_device_is_judged_on_the_nic_below_it() {
        let mut links = Links::default();
        assert!(links.put(&message(2, vec![LinkAttribute::IfName("wan0".into())])));
        let vlan = vec![
            LinkAttribute::IfName("wan0.100".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)])),
            ]),
        ];
        assert!(links.put(&message(5, vlan.clone())));
        assert!(!links.put(&message(5, vlan)), "the same news twice");
        assert_eq!(links.find("wan0"), Some(Attachment { ifindex: 2, vlan: None, ingress: 2 }));
        assert_eq!(links.find("wan0.100"), Some(Attachment { ifindex: 2, vlan: Some(100), ingress: 5 }));
        assert!(links.put(&message(2, vec![LinkAttribute::IfName("wan1".into())])), "renamed");
        assert_eq!(links.find("wan0"), None);
    }
}
