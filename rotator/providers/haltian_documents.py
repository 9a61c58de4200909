"""The GraphQL documents of Haltian's guide "MQTT API Key Management", field by field.

Its casing is a trap: refresh and delete take `apikeyId`, role and link `apiKeyId`, and every variable is `apiKeyId`.
"""

from __future__ import annotations

from typing import Final

CREATE_INTEGRATION: Final = """\
mutation CreateMqttIntegration($description: String) {
  createMqttSubscriptionIntegration(object: {
    description: $description,
    mqttSubscriptionState: "active"
  }) {
    id
    description
    mqttSubscriptionState
    organizationId
    createdAt
    updatedAt
  }
}"""
CREATE_API_KEY: Final = """\
mutation CreateApiKey($name: String!) {
  createApiKey(createApiKeyInput: {
    name: $name
  }) {
    id
    name
    organizationId
    createdAt
    token {
      token
      issuedAt
      expiresAt
    }
  }
}"""
ASSIGN_ROLE: Final = """\
mutation AssignApiKeyRole($apiKeyId: uuid!) {
  assignApiKeyOrganizationRole(object: {
    roleName: "MqttIntegrator",
    apiKeyId: $apiKeyId
  }) {
    apiKeyId
    roleName
    organizationId
  }
}"""
LINK: Final = """\
mutation AssignApiKeyToMqttIntegration($mqttSubscriptionId: uuid!, $apiKeyId: uuid!) {
  assignMqttSubscriptionIntegrationApiKey(object: {
    mqttSubscriptionId: $mqttSubscriptionId,
    apiKeyId: $apiKeyId
  }) {
    mqttSubscriptionId
    apiKeyId
  }
}"""
REFRESH_API_KEY: Final = """\
mutation RefreshApiKey($apiKeyId: uuid!) {
  refreshApiKeyToken(refreshApiKeyTokenInput: {
    apikeyId: $apiKeyId
  }) {
    id
    organizationId
    token {
      token
      issuedAt
      expiresAt
    }
  }
}"""
LIST_API_KEYS: Final = """\
query ListApiKeys {
  apiKeys {
    id
    name
    createdAt
    updatedAt
    organization {
      id
      name
    }
    token {
      issuedAt
      expiresAt
      revokedAt
    }
    organizationRoles {
      roleName
      organizationId
    }
  }
}"""
LIST_INTEGRATIONS: Final = """\
query ListMqttIntegrations {
  mqttSubscriptionIntegration {
    id
    description
    mqttSubscriptionState
    organizationId
    createdAt
    updatedAt
    apiKeys {
      apiKeyId
    }
  }
}"""
DELETE_API_KEY: Final = """\
mutation DeleteApiKey($apiKeyId: uuid!) {
  deleteApiKey(deleteApiKeyInput: {
    apikeyId: $apiKeyId
  }) {
    message
  }
}"""
LOGOUT: Final = "mutation { logout { success } }"
