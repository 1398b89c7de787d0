"""Search servers, OpenSearch or Elasticsearch: how one is reached and asked. What is kept in it is others' business."""
