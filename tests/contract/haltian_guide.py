"""What Haltian's guide "MQTT API Key Management" prints: its documents, their variables, its answers, its scripts.

Indentation is lost in the copy of the guide that we have, so it is not shown here either; all else is as printed.
"""

from __future__ import annotations

from typing import Any

DOCUMENTS: dict[str, str] = {
    "login": """\
mutation Login($email: String!, $organizationName: String!, $password: String!) {
login(loginInput: {
email: $email,
organizationName: $organizationName,
password: $password
}) {
accessToken
expiresIn
refreshExpiresIn
refreshToken
organizationId
}
}
""",
    "createMqttSubscriptionIntegration": """\
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
}
""",
    "createApiKey": """\
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
}
""",
    "assignApiKeyOrganizationRole": """\
mutation AssignApiKeyRole($apiKeyId: uuid!) {
assignApiKeyOrganizationRole(object: {
roleName: "MqttIntegrator",
apiKeyId: $apiKeyId
}) {
apiKeyId
roleName
organizationId
}
}
""",
    "assignMqttSubscriptionIntegrationApiKey": """\
mutation AssignApiKeyToMqttIntegration($mqttSubscriptionId: uuid!, $apiKeyId: uuid!) {
assignMqttSubscriptionIntegrationApiKey(object: {
mqttSubscriptionId: $mqttSubscriptionId,
apiKeyId: $apiKeyId
}) {
mqttSubscriptionId
apiKeyId
}
}
""",
    "refreshApiKeyToken": """\
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
}
""",
    "apiKeys": """\
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
}
""",
    "mqttSubscriptionIntegration": """\
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
}
""",
    "deleteApiKey": """\
mutation DeleteApiKey($apiKeyId: uuid!) {
deleteApiKey(deleteApiKeyInput: {
apikeyId: $apiKeyId
}) {
message
}
}
""",
}

VARIABLES: dict[str, dict[str, str]] = {
    "login": {
        "email": "your-email@example.com",
        "organizationName": "your-organization",
        "password": "your-password",
    },
    "createMqttSubscriptionIntegration": {"description": "Production MQTT streaming"},
    "createApiKey": {"name": "Building Management System"},
    "assignApiKeyOrganizationRole": {"apiKeyId": "c6f7b103-81df-4e73-8218-4f671056aee2"},
    "assignMqttSubscriptionIntegrationApiKey": {
        "mqttSubscriptionId": "31efcae6-39ff-45f2-b732-2090e2ed54c4",
        "apiKeyId": "c6f7b103-81df-4e73-8218-4f671056aee2",
    },
    "refreshApiKeyToken": {"apiKeyId": "c6f7b103-81df-4e73-8218-4f671056aee2"},
}

ANSWERS: dict[str, dict[str, Any]] = {
    "createMqttSubscriptionIntegration": {
        "data": {
            "createMqttSubscriptionIntegration": {
                "id": "31efcae6-39ff-45f2-b732-2090e2ed54c4",
                "description": "Production MQTT streaming",
                "mqttSubscriptionState": "active",
                "organizationId": "2a749da0-5512-...",
                "createdAt": "2026-03-24T10:00:00Z",
                "updatedAt": "2026-03-24T10:00:00Z",
            }
        }
    },
    "createApiKey": {
        "data": {
            "createApiKey": {
                "id": "c6f7b103-81df-4e73-8218-4f671056aee2",
                "name": "Building Management System",
                "organizationId": "2a749da0-5512-...",
                "createdAt": "2026-03-24T10:01:00Z",
                "token": {
                    "token": "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9...",
                    "issuedAt": "2026-03-24T10:01:00Z",
                    "expiresAt": "2026-06-22T10:01:00Z",
                },
            }
        }
    },
    "refreshApiKeyToken": {
        "data": {
            "refreshApiKeyToken": {
                "id": "c6f7b103-81df-4e73-8218-4f671056aee2",
                "organizationId": "2a749da0-5512-...",
                "token": {
                    "token": "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.new-token...",
                    "issuedAt": "2026-03-24T12:00:00Z",
                    "expiresAt": "2026-06-22T12:00:00Z",
                },
            }
        }
    },
}

# The documents of the guide's two Python scripts, shorter than the ones above, with the variables that they send.
SCRIPTS: list[tuple[str, dict[str, str]]] = [
    (
        """
mutation Login($email: String!, $organizationName: String!, $password: String!) {
login(loginInput: {email: $email, organizationName: $organizationName, password: $password}) {
accessToken
organizationId
}
}
""",
        VARIABLES["login"],
    ),
    (
        """
mutation CreateMqttIntegration($description: String) {
createMqttSubscriptionIntegration(object: {
description: $description,
mqttSubscriptionState: "active"
}) { id description }
}
""",
        {"description": "My MQTT Integration"},
    ),
    (
        """
mutation CreateApiKey($name: String!) {
createApiKey(createApiKeyInput: { name: $name }) {
id
token { token issuedAt expiresAt }
}
}
""",
        {"name": "My MQTT Key"},
    ),
    (
        """
mutation AssignRole($apiKeyId: uuid!) {
assignApiKeyOrganizationRole(object: {
roleName: "MqttIntegrator", apiKeyId: $apiKeyId
}) { apiKeyId roleName }
}
""",
        VARIABLES["assignApiKeyOrganizationRole"],
    ),
    (
        """
mutation LinkKey($mqttSubscriptionId: uuid!, $apiKeyId: uuid!) {
assignMqttSubscriptionIntegrationApiKey(object: {
mqttSubscriptionId: $mqttSubscriptionId, apiKeyId: $apiKeyId
}) { mqttSubscriptionId apiKeyId }
}
""",
        VARIABLES["assignMqttSubscriptionIntegrationApiKey"],
    ),
    (
        """
mutation Login($email: String!, $organizationName: String!, $password: String!) {
login(loginInput: {email: $email, organizationName: $organizationName, password: $password}) {
accessToken
}
}
""",
        VARIABLES["login"],
    ),
    (
        """
mutation RefreshApiKey($apiKeyId: uuid!) {
refreshApiKeyToken(refreshApiKeyTokenInput: { apikeyId: $apiKeyId }) {
id
token { token issuedAt expiresAt }
}
}
""",
        VARIABLES["refreshApiKeyToken"],
    ),
]
